"""OmniDraft: one small drafter that speeds up any target model. Its modules are not in this release yet."""
