"""The live canvas and other pages made of msk."""
