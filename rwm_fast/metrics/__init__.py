"""Numbers for the two claims: style arrives, content and the outside of a region stay."""
