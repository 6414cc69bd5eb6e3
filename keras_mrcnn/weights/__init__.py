"""Foreign weights: files read as data, names put in order by explicit tables, loading strict."""
