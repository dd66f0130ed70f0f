"""The Gradio app: vote on pictures, train on the votes, look at the result. Thin: what it does, the rooms below do."""
