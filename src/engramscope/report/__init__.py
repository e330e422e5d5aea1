"""HTML report and figures; reads only a results folder."""
