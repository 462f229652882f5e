"""One time step of a cell as a small graph: captured, divided, differentiated and run."""
