"""What a row means: schema, chat template, tokens and mask, token cache, packing plan."""
