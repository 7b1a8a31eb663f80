"""Methods side by side: a grid of ordinary runs, each made and measured in a process of its own, and what it shows."""
