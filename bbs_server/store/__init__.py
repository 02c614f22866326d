"""PostgreSQL: schema, sealed columns, loading, and the journal that commits changes in groups."""
