"""What a notebook opens and shows: the run, figures, widgets, the live view, and the sweep."""
