"""The front door: routes, schemas, problem details and the server. Only this floor knows HTTP."""
