"""The report as one HTML page that opens anywhere, offline: pictures, curves, findings and provenance."""
