"""The paper's mathematics as functions of tensors: gradients, Adam, projection, similarity.

Nothing here knows of files, recipes or data formats; docs/method.md maps each symbol of the paper
to its function here.
"""
