package route

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A literal secret in a route file would stand in every snapshot, its history
// and every instance's disk. It is refused; a reference to it is written
// instead, in the config of a middleware, which each instance resolves for
// itself. What a reference must look like is the middlewares' to check.
const (
	secretReference = "${env:NAME} or ${file:PATH}"
	secretHint      = "write " + secretReference + ", which each instance resolves for itself"
)

// literalSecret tells whether the value of something that is a secret stands
// there itself.
func literalSecret(value string) bool {
	return strings.TrimSpace(value) != "" && !strings.Contains(value, "${env:") && !strings.Contains(value, "${file:")
}

// credential tells whether a header is known to carry a secret.
func credential(header string) bool {
	switch strings.ToLower(header) {
	case "authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "apikey",
		"x-auth-token", "x-access-token", "x-amz-security-token", "x-vault-token", "private-token":
		return true
	}
	return false
}

// secretKey tells whether the key of a config names a secret by its usual
// words: password, clientSecret, api_key, …
func secretKey(key string) bool {
	word := strings.NewReplacer("-", "", "_", "", ".", "").Replace(strings.ToLower(key))
	for _, end := range [...]string{"password", "passwd", "passphrase", "secret", "token", "apikey", "privatekey", "secretkey", "accesskey", "credential", "credentials"} {
		if strings.HasSuffix(word, end) {
			return true
		}
	}
	return false
}

// checkConfig holds what is asked of every middleware's config: a JSON object
// in canonical form, within limits, without literal secrets. The path in a
// report begins with a dot, or is empty.
func checkConfig(config string, fail func(path, message, hint string)) {
	if len(config) > MaxConfigBytes {
		fail("", fmt.Sprintf("the config has %d bytes, more than %d", len(config), MaxConfigBytes), "")
		return
	}
	if config == "{}" {
		return
	}
	canonical, err := canonicalJSON(config)
	switch {
	case err != nil:
		fail("", "the config is not JSON", "a JSON object")
		return
	case canonical != config:
		fail("", "the config is not in canonical form", "normalize the table first")
		return
	case config[0] != '{':
		fail("", "the config is not an object", "fields with their values")
		return
	}
	var v any
	if err := json.Unmarshal([]byte(config), &v); err != nil {
		fail("", "the config is not JSON", "a JSON object")
		return
	}
	checkConfigValue(v, "", "", 1, fail)
}

// checkConfigValue walks a config. name is the key under which v stands, or
// the header whose value it is.
func checkConfigValue(v any, path, name string, depth int, fail func(path, message, hint string)) {
	if depth > MaxConfigDepth {
		fail(path, fmt.Sprintf("values are nested deeper than %d", MaxConfigDepth), "")
		return
	}
	switch v := v.(type) {
	case map[string]any:
		header, _ := v["name"].(string)
		for _, key := range slices.Sorted(maps.Keys(v)) {
			about := key
			if key == "value" && credential(header) {
				about = header
			}
			checkConfigValue(v[key], path+"."+key, about, depth+1, fail)
		}
	case []any:
		for i := range v {
			checkConfigValue(v[i], path+"["+strconv.Itoa(i)+"]", name, depth+1, fail)
		}
	case string:
		if (credential(name) || secretKey(name)) && literalSecret(v) {
			fail(path, "a literal secret: every snapshot and its history would hold the value of "+name, secretHint)
		}
		if userInfo(v) {
			fail(path, "a literal secret: the URL holds a user", "take it out, or "+secretHint)
		}
	}
}

// userInfo tells whether s is a URL with a user and password in it.
func userInfo(s string) bool {
	_, rest, ok := strings.Cut(s, "://")
	if !ok {
		return false
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	user, _, ok := strings.Cut(rest, "@")
	_, password, _ := strings.Cut(user, ":")
	return ok && literalSecret(password)
}
