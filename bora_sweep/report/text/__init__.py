"""The words and tables of `report.md`."""
