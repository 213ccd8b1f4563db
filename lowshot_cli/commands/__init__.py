"""What each command does: engine calls in order, and the tables people see."""
