"""Do the papers hold? Lists of runs, their results, and the page that is made of them."""
