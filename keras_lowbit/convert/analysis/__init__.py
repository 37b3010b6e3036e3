"""What each call of a Keras model means to an int8 pipeline, and where its ranges belong."""
