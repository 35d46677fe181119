"""Published experiments run again on files that the user gives, beside what was published."""
