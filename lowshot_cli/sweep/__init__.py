"""Monte-Carlo trials over shots, classes and methods, and their run folders."""
