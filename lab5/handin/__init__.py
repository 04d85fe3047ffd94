"""What is handed in: the report as a PDF, the assignment's list of marks, and the zip."""
