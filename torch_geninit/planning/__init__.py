"""Who fills what: plans and the predictions that they hold."""
