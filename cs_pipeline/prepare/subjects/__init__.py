"""The subjects that a company's customers write about: found without labels, named, and edited by a person."""
