"""Data for the experiments: public formats read from folders, and embedded defaults. None of it is in the package."""
