"""The report: many run directories read into tables and one HTML page. Imports no torch."""
