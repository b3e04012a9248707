"""One file per panel: a pure function from view data to rows, and the widget that shows them."""
