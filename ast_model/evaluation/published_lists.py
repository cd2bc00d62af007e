"""Evaluation lists of publications, encoded by Google's table of segments. See scripts/published_lists.py."""

NUM_SEGMENTS = 20371
"""Number of segments in Google's eval_segments.csv."""
DIGESTS = {
    "ast-19185": "d1ebb13f7b857bb3add2f5e73309d7a6b7453b761215d45e66c4bab440b574ff",
    "audiomosaic-19012": "7c4cad6c8522c8b88388cd87470dd7d96f11e0dfe60f6e8f200d316223ca89bf",
    "panns-18885": "a684ded9758225ed377e13bdcc5432c29a361ccedec093790fe09144e4579f98",
}
"""SHA-256 of each list, with one id per line in sorted order."""
PATTERNS = """
{Wp48S^xk9=GL@E0stWa8~^|S5YJf5;7^hV1YH0F?g#*oJ`a#(7orBIJ+rHt*u)@f6$~#|*$>^5$)2(477_9*+J>`%Kx!=sRJ6PJ&$5bh{s`lBS+j_Ax
6l=33?byV;;%@gLC)rx&6_?rsY|`^HC<8k`d||x>x5|1V~B*<>7DkcSM9VQqv1|afYIDbE1qEw)PEhIUA#ku***sxT7eFchE4r>M~J6V6ccWW9BDN*ed
uY5IvH){PCk!fC{p3tCbPN#R{3I(Awtz<C%M|<%LmiA3vC#yo3h6h%%<%~oblCS+zX^yN00Cfm@*&2>KhljR}RDOklrcx_0Q)QpJGyl@>|3dj4JGdBb7
;5b^fIcIS*(W5@hzys@hr&x!`p_cUx&gHCPK?8uom3`EkptMD2D-{{K`{-^8}cS);suZh}noHTUy;J=5VCQ`};<aW;9Z_BftQH%DqK`A!E<pIW_#oYGY
1`wErhALHHj$jIrEQorT}Z{Ly8Z}NQ!5M))is#Cb?E%)CgZ1Ly^S<F#xJNFm>8&+|%24B3d*Q@<K(AzNW><2h7sNxECu2WlqNBPKM<0&C&CP->9bcBJ`
G_kGLE7V~2e<#NVDB$I23v*mkS`;%1Ga^cZi08sS5HkGI(s7Sf4#pY1c~elrv6Ue<B1{%ZCrLEo8!yR7Hnh$qOgRZCcmt8&QCh-^HXHCZn9^4+?^gE9P
j~(dAwD{<{PRX<GF*R)PBjf}8}f;S_R=FP=wMvHhmK7dzYjl!{N6W6$l>i|Gh~yeju}4|yL)W9NzHxHUtsl6biIgod`oDM58F`3tbJ!9hVNjhf{k<isf
<NLV~$kdZuHk-y%1@mwdUmUy`1Tw*`?&}TJD}(nJrTZQR^d>2qfW|!DtEx^>&-?$r$ZdZUZq=2E#^&bIbSRl3mnNswoL5EiB;57csdIXhI5^MON2SXNh
y6h4&BU5Yc3>t!HsK3OlVBAsFwK7!=Gv^$YX;5xOA0I|I@wOvkHf9J)A;2qJZc%hiR)?4Ni3=XfOY)<$SQAl#$<AR#{TGi=lC6i4m|yKSKlwE%KUKcDi
I;!cnuV6`g15}-`p32<5-WDj}~Aw}c#p$Fy2FF-6kt1B|TMGhDPH1j@i*)8uAbX}V9L*@oBoN=R`w>lYpCxu`hNozl>G^~JUfuN@=t>#PQNFWiNgVF>A
m`Enpj<Cq#%LJZ@YxTx!&H<qRVs|p+^3i%i>bt&4Bh<&)?M*HLEvVj|>~dteRoeg%&p66xuD>s1ghS9XhJflL?mI1UDTod`%nw#f_ZyLeaviz8kYF6#k
*j8M*)S&*;m2R)d~C;|W%>{~vI+}rF+)!+QOOUsjD&P5S}E+c?Cq+e9Sw&A)He6GP1E0cc=P4=Y;h1^xNQ*5aWyr~c!nhE*v>#Iy(fzC?f9g_S<+hMwi
-9)c6%fLQ^>@)q2<I3)&Qn?+^KtmsYky`g{0B*6LvkB!Wjc&u3mp-Hu=HEPV+pXou{PPOUZLMdss$F&7VSpWhdxOQj(8624_hjA2@wc4Tib8d^%ukzsU
NZ-GtO97XC5qmmOjj=FU0E)YcU*z4y(TOWFyVxCPi#L+>$b`RfT|!eU-$U-g#i(z3LM9ObZlQ$$2avW0q!Wey$`+VU^7NoKcZ{F8^>dE@BYHyyR>^i-s
aDGipqL$d1V9O+E!_D0Qswl;T;t=xNoHh%maJ#?A{SGBlceyVDa|5#8GYb3cOfDX`(;QVYYQ!d2ps%r`m(@LSeB_CW3AL-!(YBh8<v)?VM?yk{*OdivW
&obk|0=5g5fO6Z0_h#*}IoEYyA(cK?Wb%sv_11-yUwojufm_0=_KAqHsqX_aO|)iVJvf)#YSBS%qzN|~@v5R0R`Gjd+pkOFYNSY3jp3;ixWdn8D5Xu-7
ny$f|KT0ZsFH&~YzwT%m>!PaB7>mlV(P#4X39Z0qX&z-5p6Xz68#Y9$@x0rKIhutoOKxr1Sx4W58sR}2v{x=9;<u~NQ1JQ=yB)YmRvW9FM4GcAUAGP?l
U#kc8Adr!|5d=sm&(xEA;)G;Dnp4!_vB9cliLFte*ufY583rr><T@`H#<XvcDAxd_Ixzx7;Y>8JLfj8o{q$>fKJxKJc;kw$wP|Xd_sW`*{ss8C?UEg<k
@~00$<lMmSc$Gljl$<Zu$IO_v*t=ct7{E;;fTHK;|;Q6|piq5E5V$VvFqy2~i!eWrTVuDtVO3o0O!vl^MhXE5ro<s;!{<*ShbF~;uv@;^irYi*AGP80A
|$m-rvK<?1luZxk08hAVb@Y6+LEz&hnMB588f@O5?8M-)Zpq@A0w!q*&3GSkT8;!5VWPm^R5c7i~sL1UAQd*qVbul7A00E#5lb-<ql>68vvBYQl0ssI2
00dcD
"""
"""One byte per segment in the order of ids, with one bit per list, compressed with LZMA and encoded in base 85."""
