"""Who is asking: a user branch beside the text's attention, and the encoders that turn a user's few choices into its tokens."""
