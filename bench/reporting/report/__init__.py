"""The report of a run: views of its tables; `writing` puts them on two pages."""
