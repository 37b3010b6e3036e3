"""Drawing of plain data by matplotlib and Graphviz. What is drawn has methods for it; `keras_lowbit.plot` calls them."""
