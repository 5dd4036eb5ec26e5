"""Tables and pictures, made from results; imported by nothing below the command line."""
