"""The comparison of initialisations, as the paper makes it: settings, experiments, records, pages."""
