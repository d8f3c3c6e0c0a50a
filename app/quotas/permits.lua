-- Takes a place under each name, or none.
-- KEYS  a sorted set for each: its members hold a place until the millisecond that is their score.
-- ARGV  member, ms that a place lasts, then how many places each set has.
-- Answers 0, or the number of the first that is full. A member that has its place keeps it, and takes no other.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local member, lasts = ARGV[1], tonumber(ARGV[2])
for place, set in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
  local full = redis.call('ZCARD', set) >= tonumber(ARGV[2 + place])
  if full and not redis.call('ZSCORE', set, member) then return place end
end
for _, set in ipairs(KEYS) do
  redis.call('ZADD', set, now + lasts, member)
  if redis.call('PTTL', set) < lasts then redis.call('PEXPIRE', set, lasts) end
end
return 0
