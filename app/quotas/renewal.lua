-- Makes places last, whether they are there or not: whoever holds them holds them, whatever became of this server.
-- KEYS  the sorted set of each place.    ARGV  ms that they last, then the member that holds each.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lasts = tonumber(ARGV[1])
for place, set in ipairs(KEYS) do
  redis.call('ZADD', set, now + lasts, ARGV[1 + place])
  if redis.call('PTTL', set) < lasts then redis.call('PEXPIRE', set, lasts) end
end
