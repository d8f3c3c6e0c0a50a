"""Who is let in: whose credential it is that a request brings, and what its bearer may ask for."""
