package redirect

// tableName is the nftables table that holds the rules, and nothing else.
const tableName = "heddle"
