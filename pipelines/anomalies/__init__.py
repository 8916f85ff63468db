"""What looks wrong in the audit log and in the store's access records."""
