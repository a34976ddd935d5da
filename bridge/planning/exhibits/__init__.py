"""Published calculations, reproduced to the digit."""
