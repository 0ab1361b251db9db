"""Interest learners, one file per backend; each owns its heavy imports."""
