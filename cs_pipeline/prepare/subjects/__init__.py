"""What a company's customers write about: subjects from the export or found in the texts, and edited by a person."""
