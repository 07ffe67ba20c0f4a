"""Virtual environments for the images of tasks."""
