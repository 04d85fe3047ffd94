"""Other people's files: Berkeley's TFRecords, and the weights of the course's template and of SVG."""
