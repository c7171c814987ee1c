package middleware

type ipDenyConfig struct {
	Clients []string `json:"clients" jsonschema:"required" jsonschema_description:"Addresses and CIDR ranges that may not pass. The client is the peer, or what trusted proxies say."`
}

var _ = register(ipDenyKind())

func ipDenyKind() Kind {
	return newKind("ipDeny",
		"Answers the listed clients, and those without an address, with 403; all others pass.",
		func(c *ipDenyConfig, _ Env, ps *problems) *Head {
			list, no := newIPList(c.Clients, ps), refusal()
			return &Head{Request: func(x *Exchange) *Answer {
				if !x.Client.IsValid() || list.contains(x.Client) {
					return no
				}
				return nil
			}}
		})
}
