"""One file a command: engine calls in order, then what people and programs see."""
