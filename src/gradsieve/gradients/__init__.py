"""The paper's mathematics as functions of tensors: gradients, Adam, projection, similarity.

Nothing here depends on files, recipes or data formats, except `jobs`, which runs the rest on
workers; docs/method.md maps each symbol of the paper to its function here.
"""
