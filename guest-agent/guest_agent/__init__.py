"""Executions and files of one VM."""
