"""What a run found, as JSON, as tables in the terminal, as plots and as one HTML page: all from the same rows."""
