"""A simulated robot that pushes toys: the data set of the workbook where BAIR is not at hand."""
