package cli

import (
	"slices"
	"strings"
)

// tlsHint is the way out where certificates keep somebody from etcd, "" where
// they do not. What stands in the way comes as text: the other side of a
// connection says no more.
func tlsHint(text string) string {
	says := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
	}
	switch {
	case says("the certificate for etcd, ", "remote error: tls: expired certificate"):
		return "--cert has expired, or a clock is wrong: routectl etcd certs --dir DIR --client NAME --renew makes a new one, where routectl made the old one"
	case says("certificate signed by unknown authority"):
		return "--ca names the authority that signed etcd's certificates, such as ca.pem of routectl etcd certs"
	case says("certificate has expired or is not yet valid"):
		return "etcd's own certificate is meant, or a clock is wrong: routectl etcd certs --dir DIR --server NAME=HOST,HOST… --renew makes a new one, where routectl made the old one"
	case says("certificate is valid for", "cannot validate certificate for", "certificate is not valid for any names"):
		return "--endpoints must name etcd by a host that is in its certificate: routectl etcd certs --dir DIR --server NAME=HOST,HOST… --renew makes one for others"
	case says("remote error: tls: certificate required"):
		return "etcd asks for a client certificate: --cert and --key name one, such as NAME.pem and NAME-key.pem of routectl etcd certs --client NAME"
	case says("remote error: tls: bad certificate", "remote error: tls: unknown certificate", "remote error: tls: handshake failure"):
		return "etcd does not take this certificate: --cert and --key name one that is for clients, by the authority that etcd trusts"
	case says("first record does not look like a TLS handshake"):
		return "etcd speaks no TLS there: leave --ca, --cert and --key out, or name the endpoint that does"
	}
	return ""
}
