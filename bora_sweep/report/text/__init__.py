"""The sentences and tables of `report.md`."""
