"""The networks that generators are trained for and measured on."""
