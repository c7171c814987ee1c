// Command gendocs writes the pages that say what the code says: the commands,
// the route file, the settings, the metrics, and the JSON Schema. `make docs`
// runs it from the project's folder; a test fails when a page that is checked in
// differs.
package main
