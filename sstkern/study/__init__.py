"""The experiments behind the study of text classification with recurrent networks: each gives numbers, and a picture of them."""
