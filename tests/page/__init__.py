"""The page in a real browser, and the sample of job lives that it shows."""
